# LORS on AdaMixer's mixing, as in the release; its groups and points differ
# from AdaMixer's. Put this file beside any config of AdaMixer, and take it:
#     _base_ = ['YOUR_ADAMIXER_CONFIG.py', '../_base_/models/lors.py']
#     model = dict(decoder=_base_.pop('lors'))
# It cannot set `model` itself: mmengine refuses a key that two bases have.
# `pop`, since a copy left in the config would be a setting without effect.
lors = dict(
    num_groups=2,
    in_points=64,
    stacks=dict(
        mixing_kernels=dict(mode='lors', rank=16, num_param_groups='rising'),
        mixing_out_proj=dict(mode='lors', rank=8),
    ),
)
