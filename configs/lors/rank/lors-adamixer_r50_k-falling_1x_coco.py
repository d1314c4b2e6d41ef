_base_ = '../lors-adamixer_r50_1x_coco.py'

model = dict(decoder=dict(stacks=dict(
    mixing_kernels=dict(num_param_groups='falling'))))  # fmt: skip
