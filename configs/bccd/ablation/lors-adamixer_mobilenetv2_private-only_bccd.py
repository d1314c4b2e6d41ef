_base_ = '../lors-adamixer_mobilenetv2_bccd.py'

model = dict(decoder=dict(stacks=dict(
    mixing_kernels=dict(mode='private'),
    mixing_out_proj=dict(mode='private'))))  # fmt: skip
