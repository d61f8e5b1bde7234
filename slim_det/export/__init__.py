"""Export: the artefact that is shipped, run and compared before it is published."""
