//! How many connections there may be, and what becomes of those beyond it.
