"""Score images on several processes without Lightning.

    torchrun --nproc-per-node 2 docs/examples/ddp_evaluation.py

The sampler pads seven samples to four on each of two ranks. With ``sample_ids`` the repeated sample counts once, so
that the means do not depend on the number of processes.
"""

import os
import time

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import MetricCollection
from toy import SCENES, SMALL, SUBJECTS, picture, prompt

from masc_metrics import MaSCConceptPreservation, MaSCPromptFollowing

SAMPLES = 7


def sample(number: int) -> dict[str, object]:
    subject, scene = SUBJECTS[number % len(SUBJECTS)], SCENES[number // 2]
    reference, reference_mask = picture(subject, "on a tiled floor", seed=number)
    image, mask = picture(subject, scene, seed=50 + number)
    return {
        "sample_ids": number,
        "generated_images": image,
        "generated_masks": mask,
        "reference_images": reference,
        "reference_masks": reference_mask,
        "prompts": prompt(subject, scene),
        "subjects": subject.name,
    }


def main() -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    samples = [sample(number) for number in range(SAMPLES)]
    masc = MetricCollection({"cp": MaSCConceptPreservation(**SMALL), "pf": MaSCPromptFollowing(**SMALL)}).to(device)
    for batch in DataLoader(samples, batch_size=2, sampler=DistributedSampler(samples, shuffle=False)):
        masc.update(**batch)  # the keys are the argument names of the metrics
    means = masc.compute()  # a collective call: all ranks return the same means
    if dist.get_rank() == 0:
        print(f"{SAMPLES} samples on {dist.get_world_size()} processes:", end=" ")
        print(", ".join(f"{name} {value.item():.6f}" for name, value in means.items()))
    time.sleep(0.2)  # before torch 2.8, the next line may hang if a collective has just finished
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
