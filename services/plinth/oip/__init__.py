"""KServe's Open Inference Protocol, generated from protos/plinth/oip; nothing here is written by hand."""
