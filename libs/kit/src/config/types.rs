//! Typed values and the sections that several services share.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::Checks;

/// A URL that may hold a password: shown masked wherever it is printed, readable only by [`SecretUrl::expose`].
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// A URL as text.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// With its password: for connecting only.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether nothing was set.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is written as a Postgres URL.
    ///
    /// # Errors
    /// The rule that is broken, readable after a name.
    pub fn check_postgres(&self) -> Result<(), String> {
        self.check(&["postgres", "postgresql"], "postgres://user:password@host:port/database")
    }

    fn check(&self, schemes: &[&str], form: &str) -> Result<(), String> {
        if self.is_empty() {
            Err(format!("must be set, as {form}"))
        } else if !self.has_scheme(schemes) {
            Err(format!("must be written as {form}, is {self}"))
        } else {
            Ok(())
        }
    }

    fn has_scheme(&self, schemes: &[&str]) -> bool {
        self.0.split_once("://").is_some_and(|(scheme, rest)| schemes.contains(&scheme) && !rest.is_empty())
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked_url(&self.0))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `text` with a password in it masked, if it is a URL. Written so as to hide too much rather than too little: a raw `/`,
/// `@` or `:` in the password, which a strict parser trips over, must not bring it into a log.
pub(crate) fn masked_url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (before_query, query) = rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
    let before_query = match before_query.rsplit_once('@') {
        Some((user, place)) => match user.split_once(':') {
            Some((name, _)) => format!("{name}:***@{place}"),
            None => format!("{user}@{place}"),
        },
        None => before_query.to_owned(),
    };
    let Some(query) = query else { return format!("{scheme}://{before_query}") };
    let parameters: Vec<String> = query
        .split('&')
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if name.to_lowercase().contains("password") => format!("{name}=***"),
            _ => parameter.to_owned(),
        })
        .collect();
    // A '?' inside a raw password: its rest would stand in the query.
    if query.contains('@') {
        return format!("{scheme}://***");
    }
    format!("{scheme}://{before_query}?{}", parameters.join("&"))
}

/// Reads a duration written with its unit: `"200ms"`, `"30s"`, `"1.5s"`, `"1h30m"` (us, ms, s, m, h, d).
/// For `#[serde(deserialize_with = "carillon_kit::config::duration")]`.
///
/// # Errors
/// If it is not written so.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Written;

    impl Visitor<'_> for Written {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration with its unit, such as \"200ms\" or \"30s\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse_duration(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(Written)
}

fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match rest[..letters].trim() {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        rest = &rest[letters..];
        // Through nanoseconds, rounded: 0.001 s times 200 is not exactly 200 ms in binary.
        total = total.checked_add(Duration::try_from_secs_f64((number * seconds * 1e9).round() / 1e9).ok()?)?;
    }
    Some(total)
}

/// What the shell itself needs.
#[derive(Clone, Debug, Deserialize)]
pub struct ShellConfig {
    /// `[log]`.
    pub log: LogConfig,
    /// `[admin]`.
    pub admin: AdminConfig,
    /// `[shutdown]`.
    pub shutdown: ShutdownConfig,
}

impl ShellConfig {
    pub(crate) fn check(&self, checks: &mut Checks) {
        if let Err(error) = crate::telemetry::filter(&self.log.level) {
            checks.refuse("log.level", format!("is no level and no directive: {error}"));
        }
    }
}

/// `[log]`.
#[derive(Clone, Debug, Deserialize)]
pub struct LogConfig {
    /// A level, or `tracing` directives.
    pub level: String,
    /// For people or for a collector.
    pub format: LogFormat,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Aligned, coloured on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// `[admin]`.
#[derive(Clone, Debug, Deserialize)]
pub struct AdminConfig {
    /// Where `/healthz`, `/readyz` and `/metrics` are served.
    pub listen: SocketAddr,
}

/// `[shutdown]`.
#[derive(Clone, Debug, Deserialize)]
pub struct ShutdownConfig {
    /// How long a drain may take.
    #[serde(deserialize_with = "duration")]
    pub grace: Duration,
}

/// `[postgres]`.
#[derive(Clone, Debug, Deserialize)]
pub struct PostgresConfig {
    /// Where it is.
    pub url: SecretUrl,
    /// The schema in which all that is ours lies; its form is checked by whoever writes it into statements.
    pub schema: String,
    /// Connections at most.
    pub connections_max: u32,
    /// How long to wait for one.
    #[serde(deserialize_with = "duration")]
    pub acquire_timeout: Duration,
}

impl PostgresConfig {
    /// For [`super::Settings::check`].
    pub fn check(&self, checks: &mut Checks) {
        if let Err(rule) = self.url.check_postgres() {
            checks.refuse("postgres.url", rule);
        }
        checks.that(self.connections_max > 0, "postgres.connections_max", "must be 1 or more, is 0");
        checks.that(!self.acquire_timeout.is_zero(), "postgres.acquire_timeout", "must be longer than 0");
    }
}

/// `[redis]`.
#[derive(Clone, Debug, Deserialize)]
pub struct RedisConfig {
    /// Where it is.
    pub url: SecretUrl,
    /// First part of every key.
    pub namespace: String,
}

impl RedisConfig {
    /// For [`super::Settings::check`].
    pub fn check(&self, checks: &mut Checks) {
        const SCHEMES: [&str; 8] = [
            "redis",
            "rediss",
            "redis-sentinel",
            "rediss-sentinel",
            "redis-cluster",
            "rediss-cluster",
            "valkey",
            "valkeys",
        ];
        if let Err(rule) = self.url.check(&SCHEMES, "redis://user:password@host:port/database") {
            checks.refuse("redis.url", rule);
        }
        // Braces would move the hash tag that keeps a shard's keys on one node; the rest is for readable keys.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let short = (1..=64).contains(&self.namespace.len());
        checks.that(
            short && self.namespace.chars().all(plain),
            "redis.namespace",
            format!("must be 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', is {:?}", self.namespace),
        );
    }
}

/// `[protocol]`: the times that the rules of dispatch and recovery rest on. All services must agree on them.
#[derive(Clone, Debug, Deserialize)]
pub struct ProtocolConfig {
    /// W: from an executor's read to its RUNNING in Postgres, at most.
    #[serde(deserialize_with = "duration")]
    pub window: Duration,
    /// An executor not heard of for so long may lose what it runs.
    #[serde(deserialize_with = "duration")]
    pub lease: Duration,
}

impl ProtocolConfig {
    /// For [`super::Settings::check`].
    pub fn check(&self, checks: &mut Checks) {
        checks.that(self.window >= Duration::from_millis(200), "protocol.window", "must be at least 200ms");
        checks.that(self.lease >= self.window * 10, "protocol.lease", "must be at least ten times protocol.window");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_with_a_unit() {
        for (text, ms) in
            [("200ms", 200), ("30s", 30_000), ("1.5s", 1_500), ("1h30m", 5_400_000), ("0s", 0), ("2d", 172_800_000)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse_duration("15us"), Some(Duration::from_micros(15)));
        for text in ["", "200", "ms", "-1s", "1 parsec", "1s2", "99999999999999999999d", "1..2s"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_password_never_shows() {
        for (url, shown) in [
            ("postgres://u:p@h:1/db?sslmode=off", "postgres://u:***@h:1/db?sslmode=off"),
            ("postgres://u:p/a@ss:w@h/db", "postgres://u:***@h/db"),
            ("postgres://u:p?a@h/db", "postgres://***"),
            ("postgres://h/db?user=u&password=p", "postgres://h/db?user=u&password=***"),
            ("redis://:123456@h", "redis://:***@h"),
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("not a url", "not a url"),
        ] {
            assert_eq!(SecretUrl::new(url).to_string(), shown);
            assert_eq!(format!("{:?}", SecretUrl::new(url)), shown);
        }
    }
}
