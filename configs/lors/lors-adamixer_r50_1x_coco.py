_base_ = '../adamixer/adamixer_r50_1x_coco.py'

model = dict(
    decoder=dict(
        num_groups=2,
        in_points=64,
        stacks=dict(
            mixing_kernels=dict(
                mode='lors', rank=16, num_param_groups=[1, 1, 2, 2, 3, 3]
            ),
            mixing_out_proj=dict(mode='lors', rank=8),
        ),
    ),
)
