# DeiT-Tiny on CIFAR-100, with the recipe of the LORS release: docs/deit.md.
custom_imports = dict(
    imports=[
        'lors_det.vit',
        'lors_det.datasets.image_classes',
        'lors_det.hooks.checkpoint',
        'lors_det.hooks.exact_resume',
    ],
    allow_failed_imports=False,
)
default_scope = 'mmengine'

model = dict(
    type='ViTClassifier',
    num_classes=100,
    img_size=32,
    patch_size=4,
    in_channels=3,
    embed_dims=192,
    num_layers=12,
    num_heads=3,
    feedforward_channels=768,
    stacks=dict(),
    label_smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    data_preprocessor=dict(
        type='ImgDataPreprocessor',
        mean=[129.304, 124.070, 112.434],
        std=[68.170, 65.392, 70.418],
    ),
)

train_dataloader = dict(
    batch_size=1024,
    num_workers=4,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CIFAR100Images',
        data_root='data/cifar100',
        split='train',
        transforms=[dict(type='RandomHorizontalFlip', p=0.5)],
    ),
)
val_dataloader = dict(
    batch_size=1024,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='CIFAR100Images',
        data_root='data/cifar100',
        split='test',
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Top1Accuracy')
test_evaluator = val_evaluator

train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=10)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    # By part of a name: 'bias' is also in those of stacks, ``qkv.bias.3``.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            'bias': dict(decay_mult=0.0),
            'cls_token': dict(decay_mult=0.0),
            'pos_embed': dict(decay_mult=0.0),
        },
    ),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
# 1024 images per step in all: N processes take batch_size=1024 / N.
auto_scale_lr = dict(enable=False, base_batch_size=1024)

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='SafeCheckpointHook', interval=10, max_keep_ckpts=3),
    resume=dict(type='ExactResumeHook'),
)
