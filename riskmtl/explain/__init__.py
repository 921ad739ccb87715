"""Why a model scores as it does, per head and in the user's own columns."""
