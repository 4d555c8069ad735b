"""margin_ext inside other libraries; each module needs its own extra and is imported by itself.

==================  =====================================================================
``torchmetrics``    ``AverageMargin``, ``MinimumMargin``, ``RobustAccuracy``
``lightning``       ``MarginCallback``, ``MarginTraining``
``transformers``    ``MarginTrainer``, ``MarginTrainerCallback``
``foolbox``         ``to_foolbox``, ``from_foolbox``
``pixel_model``     ``PixelModel``, for adv-lib, AutoAttack and all else that wants [0, 1]
``attack_distance`` ``AttackDistance``: another library's attack as a bound of ``measure``
``model_card``      ``model_card``: a margin report as a Markdown card
==================  =====================================================================
"""
