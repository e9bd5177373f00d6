"""What nvidia-mig-parted v0.15.0 wrote on simulated nodes.

Both are of a node of --gpu h100-80gb-sxm5 --count 2 --gpu a100-40gb --gpu a30-24gb
--gpu rtx-pro-6000-blackwell-96gb. generated.yaml is the output of `generate-config`;
checkpoint.json that of `checkpoint`, after `apply` of a config with, on GPU 0, one 1g.10gb, two
1c.2g.20gb and one 4g.40gb; on GPU 2 two 1c.3g.20gb, one 2g.10gb and one 1g.5gb+me; on GPU 4 two
1g.24gb+gfx and one 2g.48gb-me; and MIG off on the others.
"""

from pathlib import Path

BOARDS = (
    ("h100-80gb-sxm5", 2),
    ("a100-40gb", 1),
    ("a30-24gb", 1),
    ("rtx-pro-6000-blackwell-96gb", 1),
)
GENERATED = Path(__file__).with_name("generated.yaml").read_text()
CHECKPOINT = Path(__file__).with_name("checkpoint.json").read_text()
