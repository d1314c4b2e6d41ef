# A small DeiT on the digits that come with scikit-learn: nothing to download,
# under a minute on one core. docs/deit.md has the results.
_base_ = './deit-tiny_cifar100.py'

model = dict(
    num_classes=10,
    img_size=8,
    patch_size=2,
    in_channels=1,
    embed_dims=64,
    num_layers=4,
    num_heads=4,
    feedforward_channels=256,
    # In so short a training, mixed images cost more than they bring.
    mixup=0.0,
    cutmix=0.0,
    # Of the training part, whose pixels are from 0 to 16.
    data_preprocessor=dict(mean=[4.89], std=[6.02]),
)

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    # No flips: a digit in a mirror is none.
    dataset=dict(_delete_=True, type='DigitImages', split='train'),
)
val_dataloader = dict(
    batch_size=450,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(_delete_=True, type='DigitImages', split='test'),
)
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=30, val_interval=30)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=3,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=3,
        end=30,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=40), checkpoint=dict(interval=30))
randomness = dict(seed=0)
