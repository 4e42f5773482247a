//! The on-disk layer format: whiteouts, opaque directories, redirects, metacopy.
