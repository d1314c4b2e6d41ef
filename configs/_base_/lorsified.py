# Put this file beside a config of mmdet, and take its hooks:
#     default_hooks = _base_.pop('run_hooks')
# They are no `default_hooks` here: mmengine refuses a key that two bases have.
custom_imports = dict(
    imports=[
        'lors_det.hooks.checkpoint',
        'lors_det.lors_detr',
        'lors_det.hooks.exact_resume',
    ],
    allow_failed_imports=False,
)
run_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3),
    resume=dict(type='ExactResumeHook'),
)
