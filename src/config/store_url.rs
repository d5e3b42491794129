//! Where a store is, as an operator writes it: `store.url` of the file, `--from` and `--to` of the command line.

use std::path::Path;

use super::diagnostic::{nearest, shorten};
use super::model::StoreUrl;

const SCHEMES: [&str; 5] = ["sqlite", "redis", "rediss", "redis+sentinel", "redis+cluster"];

/// A text is no store URL. It is not repeated, for it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {mend}")]
pub struct UrlError {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub mend: String,
}

impl UrlError {
    fn new(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { what: what.into(), mend: mend.into() }
    }
}

impl StoreUrl {
    /// Reads a URL; a relative path begins at `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self, UrlError> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(UrlError::new("a store URL needs a scheme", "write sqlite:PATH"));
        };
        match scheme {
            "sqlite" => sqlite(rest, base),
            "redis" | "rediss" | "redis+sentinel" | "redis+cluster" => {
                Err(UrlError::new("a Redis store is not enforced by this build yet", "write sqlite:PATH"))
            }
            _ => {
                let near = nearest(scheme, SCHEMES);
                let mend =
                    near.map_or_else(|| "write sqlite:PATH".to_owned(), |near| format!("did you mean `{near}`?"));
                Err(UrlError::new(format!("unknown kind of store `{}`", shorten(scheme)), mend))
            }
        }
    }
}

fn sqlite(path: &str, base: &Path) -> Result<StoreUrl, UrlError> {
    const LIKE: &str = "write sqlite:data/gateway.db";
    match path {
        "" | "//" | ":memory:" => Err(UrlError::new("a SQLite store needs a file", LIKE)),
        _ if path.contains('\0') => Err(UrlError::new("a path has no NUL", LIKE)),
        _ => Ok(StoreUrl::Sqlite(base.join(path))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<StoreUrl, String> {
        StoreUrl::parse(text, Path::new("base")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_path_is_relative_to_the_base_or_absolute() {
        assert_eq!(parsed("sqlite:data/x.db"), Ok(StoreUrl::Sqlite("base/data/x.db".into())));
        assert_eq!(parsed("sqlite:/var/x.db"), Ok(StoreUrl::Sqlite("/var/x.db".into())));
        let here = StoreUrl::parse("sqlite:x.db", Path::new("")).unwrap();
        assert_eq!(here, StoreUrl::Sqlite("x.db".into()));
    }

    #[test]
    fn what_is_no_url_is_told_without_repeating_more_than_its_scheme() {
        for text in
            ["gateway.db", "sqlite:", "sqlite::memory:", "sqlite:a\0b", "postgres:p4ss", "sqlit:p4ss", "redis://p4ss"]
        {
            let message = parsed(text).unwrap_err();
            assert!(!message.contains("p4ss") && message.contains("; "), "{text}: {message}");
        }
        assert_eq!(parsed("sqlit:x").unwrap_err(), "unknown kind of store `sqlit`; did you mean `sqlite`?");
    }
}
