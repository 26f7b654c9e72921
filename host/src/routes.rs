//! Finds the component that handles a path.
//!
//! Routes are exact (`/health`) or end in a wildcard (`/v1/...`). As on Spin, slashes at the end of a path don't
//! matter, an exact route takes precedence over a wildcard, and a longer wildcard over a shorter one. Spin's
//! rules are in its `crates/routes` and in the crate `routefinder`.

/// Why a route can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// It has a named segment, or a wildcard in the middle.
    #[error(
        "the route '{0}' has a named or inner wildcard, which this host doesn't match. \
         Use an exact route or one that ends in /..., or run the application with `spin up`"
    )]
    Wildcard(String),
    /// It has a wildcard with a name, or a named segment without one.
    #[error("the route '{0}' has a '*' with a name or a ':' without one. Use one that ends in /...")]
    Name(String),
    /// It is defined twice; Spin would use the last definition.
    #[error("the route '{0}' is defined twice. Remove one [[trigger.http]]")]
    Duplicate(String),
}

impl RouteError {
    /// Whether Spin would start with such a route.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Wildcard(_) | Self::Duplicate(_) => true,
            Self::Name(_) => false,
        }
    }
}

/// The routes of an application.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Router(Vec<Route>);

#[derive(Debug, PartialEq, Eq)]
struct Route {
    raw: String,
    prefix: String,
    wildcard: bool,
    component: String,
}

/// The route that matches a path.
#[derive(Debug, PartialEq, Eq)]
pub struct RouteMatch<'a> {
    /// The name of the component.
    pub component: &'a str,
    /// The route as the manifest spells it.
    pub raw: &'a str,
    /// The part of the path that the wildcard matches, with its leading slash; empty for an exact route.
    pub path_info: String,
}

impl RouteMatch<'_> {
    /// The route with a leading slash and without a trailing one.
    pub fn based(&self) -> String {
        let slash = if self.raw.starts_with('/') { "" } else { "/" };
        let based = format!("{slash}{}", self.raw);
        based.strip_suffix('/').map(str::to_owned).unwrap_or(based)
    }

    /// The route without its wildcard.
    pub fn raw_prefix(&self) -> &str {
        self.raw.strip_suffix("/...").unwrap_or(self.raw)
    }
}

impl Router {
    /// Adds a route.
    pub fn add(&mut self, raw: &str, component: &str) -> Result<(), RouteError> {
        let (prefix, wildcard) = match raw.strip_suffix("/...") {
            Some(prefix) => (prefix, true),
            None => (if raw == "..." { "" } else { raw }, raw == "..."),
        };
        let segments: Vec<&str> = prefix.split('/').filter(|segment| !segment.is_empty()).collect();
        // Dots are separators too: `/a.*b`.
        let words = || segments.iter().flat_map(|segment| segment.split('.'));
        if words().any(|word| word == ":" || (word.starts_with('*') && word != "*")) {
            return Err(RouteError::Name(raw.to_owned()));
        }
        if words().any(|word| word.starts_with([':', '*'])) || segments.contains(&"...") {
            return Err(RouteError::Wildcard(raw.to_owned()));
        }
        let prefix = segments.join("/");
        if self.0.iter().any(|route| route.prefix == prefix && route.wildcard == wildcard) {
            return Err(RouteError::Duplicate(raw.to_owned()));
        }
        self.0.push(Route { raw: raw.to_owned(), prefix, wildcard, component: component.to_owned() });
        // In order of precedence, so that the first match is the right one.
        self.0.sort_by_key(|route| (route.wildcard, std::cmp::Reverse(route.prefix.len())));
        Ok(())
    }

    /// Finds the route for a path.
    pub fn find(&self, path: &str) -> Option<RouteMatch<'_>> {
        let trimmed = path.trim_matches('/');
        self.0.iter().find_map(|route| {
            let rest = route.rest(trimmed)?;
            let path_info = match (route.wildcard, rest.is_empty(), path.ends_with('/')) {
                (false, ..) | (true, true, false) => String::new(),
                (true, true, true) => "/".to_owned(),
                (true, false, false) => format!("/{rest}"),
                (true, false, true) => format!("/{rest}/"),
            };
            Some(RouteMatch { component: &route.component, raw: &route.raw, path_info })
        })
    }

    /// The routes as the manifest spells them, with their components.
    pub fn routes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|route| (route.raw.as_str(), route.component.as_str()))
    }
}

impl Route {
    /// The rest of a path after this route's prefix; `None` if the route doesn't match.
    fn rest<'p>(&self, trimmed: &'p str) -> Option<&'p str> {
        let rest = trimmed.strip_prefix(self.prefix.as_str())?;
        if rest.is_empty() || (self.wildcard && self.prefix.is_empty()) {
            return Some(rest);
        }
        rest.strip_prefix('/').filter(|_| self.wildcard)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn router(routes: &[(&str, &str)]) -> Router {
        let mut router = Router::default();
        for (route, component) in routes {
            router.add(route, component).unwrap();
        }
        router
    }

    fn component<'r>(router: &'r Router, path: &str) -> Option<&'r str> {
        router.find(path).map(|found| found.component)
    }

    #[test]
    fn exact_routes_precede_wildcards_and_longer_ones_precede_shorter() {
        let router =
            router(&[("/...", "all"), ("/v1/...", "v1"), ("/v1/models", "models"), ("/v1/chat/...", "chat")]);
        for (path, expected) in [
            ("/", "all"),
            ("/other", "all"),
            ("/v10", "all"),
            ("/v1", "v1"),
            ("/v1/", "v1"),
            ("/v1/models", "models"),
            ("/v1/models/", "models"),
            ("/v1/models/x", "v1"),
            ("/v1/chat/completions", "chat"),
        ] {
            assert_eq!(component(&router, path), Some(expected), "{path}");
        }
    }

    #[test]
    fn a_path_without_a_route_is_not_found() {
        let router = router(&[("/v1/...", "v1"), ("/health", "health")]);
        for path in ["/", "/v2", "/health/x", "/healthy"] {
            assert_eq!(component(&router, path), None, "{path}");
        }
    }

    #[test]
    fn missing_and_extra_slashes_make_no_difference_to_a_route() {
        for route in ["a/b", "/a/b/", "/a//b"] {
            assert_eq!(component(&router(&[(route, "c")]), "/a/b"), Some("c"), "{route}");
        }
        for route in ["...", "/..."] {
            assert_eq!(component(&router(&[(route, "c")]), "/a"), Some("c"), "{route}");
        }
    }

    #[test]
    fn path_info_is_what_the_wildcard_matches() {
        let router = router(&[("/foo/...", "foo"), ("/exact", "exact")]);
        for (path, expected) in [
            ("/foo", ""),
            ("/foo/", "/"),
            ("/foo/bar", "/bar"),
            ("/foo/bar/", "/bar/"),
            ("/foo/a/b", "/a/b"),
            ("/exact", ""),
        ] {
            assert_eq!(router.find(path).unwrap().path_info, expected, "{path}");
        }
        assert_eq!(router.find("/foo/bar").unwrap().raw_prefix(), "/foo");
        assert_eq!(router.find("/foo/bar").unwrap().based(), "/foo/...");
    }

    #[test]
    fn routes_that_this_host_cannot_match_are_refused() {
        for route in ["/:id", "/users/:id/...", "/a/*", "/.../x", "/a.:type"] {
            assert_eq!(Router::default().add(route, "c"), Err(RouteError::Wildcard(route.to_owned())));
        }
        for route in ["/:", "/*rest", "/a.*b"] {
            assert_eq!(Router::default().add(route, "c"), Err(RouteError::Name(route.to_owned())));
        }
        let mut router = router(&[("/a", "c")]);
        assert_eq!(router.add("/a/", "d"), Err(RouteError::Duplicate("/a/".to_owned())));
    }

    proptest! {
        #[test]
        fn the_wildcard_route_answers_every_path(path in r"/\PC*") {
            let router = router(&[("/...", "all")]);
            prop_assert_eq!(component(&router, &path), Some("all"));
        }

        #[test]
        fn prefix_and_path_info_make_up_the_path(rest in "(/[a-z]{1,3}){0,3}/?") {
            let router = router(&[("/foo/...", "foo")]);
            let path = format!("/foo{rest}");
            let found = router.find(&path).unwrap();
            prop_assert_eq!(format!("{}{}", found.raw_prefix(), found.path_info), path);
        }
    }
}
