_base_ = '../lors-adamixer_mobilenetv2_bccd.py'

model = dict(decoder=dict(stacks=dict(
    mixing_kernels=dict(mode='shared'),
    mixing_out_proj=dict(mode='shared'))))  # fmt: skip
