# LORS in the paper's proportions: groups and points as in
# _base_/models/lors.py, points and ranks a quarter of them.
_base_ = './adamixer_mobilenetv2_deeppcb.py'

model = dict(
    decoder=dict(
        num_groups=2,
        in_points=16,
        stacks=dict(
            mixing_kernels=dict(
                mode='lors', rank=4, num_param_groups='rising'
            ),
            mixing_out_proj=dict(mode='lors', rank=2),
        ),
    )
)
