_base_ = './deit-tiny_digits.py'

# K of a layer is the mean of the release's over a quarter of its 12 layers.
model = dict(
    stacks=dict(
        attention=dict(mode='lors', rank=8, num_param_groups=[1, 1, 1, 4]),
        ffn=dict(mode='lors', rank=8, num_param_groups=[4, 1, 1, 1]),
    ),
)
