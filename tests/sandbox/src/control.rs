//! HTTP control under `/_sandbox/`.
