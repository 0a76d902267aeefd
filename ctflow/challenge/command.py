"""The command: parse, run, or test itself."""

from __future__ import annotations

from collections.abc import Sequence

from ctflow.config import Flag, parse_command
from ctflow.config.challenge import FORMS, ChallengeConfig
from ctflow.formats import ORIENTATIONS

DESCRIPTION = """One CT per prompt, by the contract of the VLM3D challenge (text to CT): reads prompts.json,
writes NAME.nii.gz (float32 HU from -1000 to 1000) for every input_image_name, resumes after a kill, and ends
with an error unless every volume is there and as the contract says."""

FLAGS = [
    Flag("--input", "input", {"help": "prompts.json", "metavar": "JSON"}),
    Flag("--output", "output", {"help": "folder of the volumes", "metavar": "DIR"}),
    Flag("--progress", "progress", {"help": "folder that survives a restart", "metavar": "DIR"}),
    Flag("--checkpoint", "checkpoint", {"help": "checkpoint folder, run:NAME or latest; default: embedded"}),
    Flag("--form", "form", {"choices": FORMS, "help": "loose .nii.gz, or .mha in predictions.zip"}),
    Flag("--orientation", "orientation", {"choices": ORIENTATIONS, "help": "order of the voxels"}),
    Flag("--time-budget", "time_budget", {"type": float, "metavar": "MINUTES", "help": "for the whole run"}),
    Flag("--seed", "seed", {"type": int, "help": "seed of the noise"}),
    Flag(
        "--self-test",
        options={
            "action": "store_true",
            "help": "run the whole contract on three prompts in a temporary folder, with a kill in between",
        },
    ),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Generate the volumes of all prompts, or test that this works here.

    Raises:
        CTFlowError: Prompts, weights, folders or volumes are not as the contract says.
    """
    line = parse_command(ChallengeConfig, "ctflow challenge", DESCRIPTION, FLAGS, argv)
    if line.flags["self_test"]:
        from ctflow.challenge.selftest import self_test

        self_test(line.config)
    else:
        from ctflow.challenge.run import run  # takes seconds: after the arguments

        run(line.config)
    return 0
