from ctflow.config.training import TrainConfig
def ensure_default_data(config: TrainConfig) -> TrainConfig:
    return config
