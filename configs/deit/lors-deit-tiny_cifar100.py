_base_ = './deit-tiny_cifar100.py'

# The release's default: rank 32 x K, more for late attention and early FFNs.
model = dict(
    stacks=dict(
        attention=dict(
            mode='lors',
            rank=32,
            num_param_groups=[1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 4, 6],
        ),
        ffn=dict(
            mode='lors',
            rank=32,
            num_param_groups=[6, 4, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        ),
    ),
)
