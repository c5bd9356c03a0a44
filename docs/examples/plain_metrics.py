"""Both metrics without a trainer: print the mean scores of three simulated generators.

python docs/examples/plain_metrics.py
"""

import torch
from toy import SCENES, SMALL, SUBJECTS, picture, prompt

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing


def main() -> None:
    cp = MaSCConceptPreservation(**SMALL, reduction="none")
    pf = MaSCPromptFollowing(**SMALL, reduction="none")
    variants = []
    for number, subject in enumerate(SUBJECTS):
        reference, reference_mask = picture(subject, "on a tiled floor", seed=number)
        prompt_scene, other_scene = SCENES[number], SCENES[number - 1]
        # Three simulated generators: both right, the wrong subject, the wrong scene.
        for variant, shown, scene in (
            ("both right", subject, prompt_scene),
            ("wrong subject", SUBJECTS[number - 1], prompt_scene),
            ("wrong scene", subject, other_scene),
        ):
            image, mask = picture(shown, scene, seed=50 + number)
            cp.update([image], [reference], [reference_mask])
            pf.update([image], [mask], [prompt(subject, prompt_scene)], [subject.name])
            variants.append(variant)

    cp_scores, pf_scores = cp.compute(), pf.compute()
    print(f"{'':14}    CP      PF    (means of {len(SUBJECTS)} images)")
    for variant in dict.fromkeys(variants):
        chosen = torch.tensor([name == variant for name in variants])
        print(f"{variant:14} {cp_scores[chosen].mean():6.3f}  {pf_scores[chosen].mean():6.3f}")


if __name__ == "__main__":
    main()
