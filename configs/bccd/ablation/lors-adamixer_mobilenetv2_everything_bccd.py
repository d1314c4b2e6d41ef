_base_ = '../lors-adamixer_mobilenetv2_bccd.py'

model = dict(decoder=dict(stacks=dict(
    attention=dict(mode='lors', rank=2),
    offsets=dict(mode='lors', rank=2),
    ffn=dict(mode='lors', rank=2),
    heads=dict(mode='lors', rank=2))))  # fmt: skip
