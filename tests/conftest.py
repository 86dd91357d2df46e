from hypothesis import settings

settings.register_profile("shared machine", deadline=None)  # a slow moment is not a failure
settings.load_profile("shared machine")
