"""Generated from proto/csi.proto by proto/generate.sh; not to be edited."""
