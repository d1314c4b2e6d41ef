default_scope = 'mmdet'

custom_imports = dict(
    imports=[
        'lors_det.adamixer',
        'lors_det.datasets.coco',
        'lors_det.hooks.data_defects',
        'lors_det.hooks.checkpoint',
        'lors_det.hooks.non_finite',
        'lors_det.hooks.exact_resume',
        'lors_det.analysis.visualizer',
    ],
    allow_failed_imports=False,
)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
    # Our own, docs/reliability.md and docs/data.md. They are no custom_hooks:
    # a config that sets those replaces the whole list.
    checkpoint=dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=3),
    exact_resume=dict(type='ExactResumeHook'),
    data_defects=dict(type='DefectsHook'),
    non_finite=dict(type='NonFiniteHook', action='skip', max_consecutive=10),
)
custom_hooks = [dict(type='NumClassCheckHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='BoundedDetVisualizer', vis_backends=vis_backends, name='visualizer'
)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

log_level = 'INFO'
load_from = None
resume = False
