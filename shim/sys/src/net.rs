//! Sockets, as far as save and resume need them.
