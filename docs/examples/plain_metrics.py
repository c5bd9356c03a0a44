"""Both metrics without any trainer: pictures in, a table and two means out.

python docs/examples/plain_metrics.py
"""

import torch
from toy import SCENES, SMALL, SUBJECTS, picture, prompt

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing


def main() -> None:
    cp = MaSCConceptPreservation(**SMALL, reduction="none")
    pf = MaSCPromptFollowing(**SMALL, reduction="none")
    told = []
    for number, subject in enumerate(SUBJECTS):
        reference, reference_mask = picture(subject, "on a tiled floor", seed=number)
        asked, other = SCENES[number], SCENES[number - 1]
        # What three generators might make of the prompt: both right, the wrong subject, the wrong scene.
        for what, shown, scene in (
            ("both right", subject, asked),
            ("wrong subject", SUBJECTS[number - 1], asked),
            ("wrong scene", subject, other),
        ):
            image, mask = picture(shown, scene, seed=50 + number)
            cp.update([image], [reference], [reference_mask])
            pf.update([image], [mask], [prompt(subject, asked)], [subject.name])
            told.append(what)

    cp_scores, pf_scores = cp.compute(), pf.compute()
    print(f"{'':14}    CP      PF    (means of {len(SUBJECTS)} pictures)")
    for what in dict.fromkeys(told):
        chosen = torch.tensor([each == what for each in told])
        print(f"{what:14} {cp_scores[chosen].mean():6.3f}  {pf_scores[chosen].mean():6.3f}")


if __name__ == "__main__":
    main()
