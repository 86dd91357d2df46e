"""Student-teacher pretraining of dental radiograph backbones."""
