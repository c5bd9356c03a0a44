"""Both metrics without a trainer: scores of simulated generators as a table.

python docs/examples/plain_metrics.py
"""

import torch
from toy import SCENES, SMALL, SUBJECTS, picture, prompt

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing


def main() -> None:
    cp = MaSCConceptPreservation(**SMALL, reduction="none")
    pf = MaSCPromptFollowing(**SMALL, reduction="none")
    cases = []
    for number, subject in enumerate(SUBJECTS):
        reference, reference_mask = picture(subject, "on a tiled floor", seed=number)
        prompt_scene, other_scene = SCENES[number], SCENES[number - 1]
        for case, shown_subject, shown_scene in (
            ("both right", subject, prompt_scene),
            ("wrong subject", SUBJECTS[number - 1], prompt_scene),
            ("wrong scene", subject, other_scene),
        ):
            image, mask = picture(shown_subject, shown_scene, seed=50 + number)
            cp.update([image], [reference], [reference_mask])
            pf.update([image], [mask], [prompt(subject, prompt_scene)], [subject.name])
            cases.append(case)

    cp_scores, pf_scores = cp.compute(), pf.compute()
    print(f"{'':14}    CP      PF    (means of {len(SUBJECTS)} images)")
    for case in dict.fromkeys(cases):
        chosen = torch.tensor([name == case for name in cases])
        print(f"{case:14} {cp_scores[chosen].mean():6.3f}  {pf_scores[chosen].mean():6.3f}")


if __name__ == "__main__":
    main()
