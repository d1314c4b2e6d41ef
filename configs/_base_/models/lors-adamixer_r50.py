_base_ = './adamixer_r50.py'

# The release's default for LORS; groups and points differ from AdaMixer's.
model = dict(
    decoder=dict(
        num_groups=2,
        in_points=64,
        stacks=dict(
            mixing_kernels=dict(
                mode='lors', rank=16, num_param_groups='rising'
            ),
            mixing_out_proj=dict(mode='lors', rank=8),
        ),
    ),
)
