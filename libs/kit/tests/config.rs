//! Layers, names and errors of the configuration. The environment is an argument here, so that tests run side by side.

#![expect(clippy::unwrap_used, reason = "a failure in a test shall panic")]

use std::ffi::OsString;
use std::io::Write as _;
use std::time::Duration;

use carillon_kit::Service;
use carillon_kit::config::{self, Checks, Loaded, PostgresConfig, Problems, RedisConfig, Settings};
use serde::Deserialize;
use tempfile::NamedTempFile;

const SERVICE: Service = Service {
    name: "carillon-dispatcher",
    about: "",
    version: "0",
    defaults: &[
        config::SHELL,
        config::POSTGRES,
        config::REDIS,
        "[admin]\nlisten = \"127.0.0.1:9101\"\n\
         [dispatcher]\n# Lead.\nlead = \"200ms\"\n# Queues.\nqueues = [\"default\"]\n# Ratio.\nratio = 0.5\n# On.\non = false\n",
    ],
};

#[derive(Debug, Deserialize)]
struct Config {
    postgres: PostgresConfig,
    redis: RedisConfig,
    dispatcher: Dispatcher,
}

#[derive(Debug, Deserialize)]
struct Dispatcher {
    #[serde(deserialize_with = "config::duration")]
    lead: Duration,
    queues: Vec<String>,
    ratio: f64,
    on: bool,
}

impl Settings for Config {
    fn check(&self, checks: &mut Checks) {
        self.postgres.check(checks);
        self.redis.check(checks);
        checks.that(self.dispatcher.lead <= Duration::from_millis(500), "dispatcher.lead", "must be at most 500ms");
    }
}

const POSTGRES: (&str, &str) = ("CARILLON_POSTGRES_URL", "postgres://u@h/db");
const REDIS: (&str, &str) = ("CARILLON_REDIS_URL", "redis://h");

fn load(file: Option<&NamedTempFile>, environment: &[(&str, &str)]) -> Result<Loaded<Config>, Problems> {
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    config::load(&SERVICE, file.map(NamedTempFile::path), environment)
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn later_layers_win() {
    let both = [POSTGRES, REDIS];
    let loaded = load(None, &both).unwrap();
    assert_eq!(loaded.config.dispatcher.lead, Duration::from_millis(200));
    assert_eq!(loaded.shell.admin.listen.port(), 9101, "a service's defaults override the shared ones");

    let file = file("[dispatcher]\nlead = \"300ms\"\nqueues = [\"a\", \"b\"]\n[log]\nlevel = \"warn\"\n");
    let loaded = load(Some(&file), &both).unwrap();
    assert_eq!(loaded.config.dispatcher.lead, Duration::from_millis(300));
    assert_eq!(loaded.config.dispatcher.queues, ["a", "b"]);
    assert_eq!(loaded.shell.log.level, "warn");

    let environment = [POSTGRES, REDIS, ("CARILLON_DISPATCHER_LEAD", "400ms"), ("RUST_LOG", "debug")];
    let loaded = load(Some(&file), &environment).unwrap();
    assert_eq!(loaded.config.dispatcher.lead, Duration::from_millis(400));
    assert_eq!(loaded.shell.log.level, "debug");
}

#[test]
fn the_usual_names_are_fallbacks() {
    let usual = [("DATABASE_URL", "postgres://usual/db"), ("REDIS_URL", "redis://usual")];
    let loaded = load(None, &usual).unwrap();
    assert_eq!(loaded.config.postgres.url.expose(), "postgres://usual/db");
    assert_eq!(loaded.config.redis.url.expose(), "redis://usual");
    let loaded = load(None, &[usual[0], usual[1], POSTGRES]).unwrap();
    assert_eq!(loaded.config.postgres.url.expose(), POSTGRES.1);
    let file = file("[redis]\nurl = \"redis://file\"\n");
    let loaded = load(Some(&file), &usual).unwrap();
    assert_eq!(loaded.config.redis.url.expose(), "redis://file");
}

#[test]
fn a_variable_is_read_as_the_type_of_its_setting() {
    let environment = [
        POSTGRES,
        REDIS,
        ("CARILLON_POSTGRES_CONNECTIONS_MAX", "12"),
        ("CARILLON_REDIS__NAMESPACE", "12345"),
        ("CARILLON_DISPATCHER_QUEUES", "reports, 7 ,mail"),
        ("CARILLON_DISPATCHER_RATIO", "1"),
        ("CARILLON_DISPATCHER_ON", "true"),
        ("CARILLON_DISPATCHER_LEAD", ""),
    ];
    let loaded = load(None, &environment).unwrap();
    assert_eq!(loaded.config.postgres.connections_max, 12);
    assert_eq!(loaded.config.redis.namespace, "12345", "digits stay a text");
    assert_eq!(loaded.config.dispatcher.queues, ["reports", "7", "mail"]);
    assert!(loaded.config.dispatcher.on && (loaded.config.dispatcher.ratio - 1.0).abs() < f64::EPSILON);
    assert_eq!(loaded.config.dispatcher.lead, Duration::from_millis(200), "empty is not set");
}

#[test]
fn a_secret_may_stand_in_a_file_of_its_own() {
    let secret = file("postgres://u:p@h/db\n");
    let path = secret.path().to_str().unwrap();
    let loaded = load(None, &[("CARILLON_POSTGRES_URL_FILE", path), REDIS]).unwrap();
    assert_eq!(loaded.config.postgres.url.expose(), "postgres://u:p@h/db");
    let problems = load(None, &[("CARILLON_POSTGRES_URL_FILE", "/nonexistent"), REDIS]).unwrap_err().to_string();
    assert!(problems.contains("postgres.url: names a file that cannot be read"), "{problems}");
}

#[test]
fn all_that_is_wrong_is_said_at_once_with_its_place() {
    let file = file("[dispatcher]\nlead = 200\nlaed = 1\n[bell]\nloud = true\n[postgres]\nconnections_max = 0\n");
    let environment = [
        ("CARILLON_REDIS_URL", "http://u:geheim@h"),
        ("CARILLON_DISPATCHER_RATIO", "half"),
        ("CARILLON_REDIS_NAMESAPCE", "x"),
        ("CARILLON_LOG_FORMAT", "yaml"),
        ("RUST_LOG", "a=b=c"),
    ];
    let problems = load(Some(&file), &environment).unwrap_err();
    let text = problems.to_string();
    let path = file.path().display().to_string();
    for (setting, rule, source) in [
        ("dispatcher.lead", "expected a duration with its unit", path.as_str()),
        ("dispatcher.laed", "unknown setting; [dispatcher] has lead, on, queues, ratio", &path),
        ("bell.loud", "unknown setting; the sections are admin, dispatcher,", &path),
        ("postgres.connections_max", "must be 1 or more", &path),
        ("postgres.url", "must be set, as postgres://", "the default; set CARILLON_POSTGRES_URL"),
        (
            "redis.url",
            "must be written as redis://user:password@host:port/database, is http://u:***@h",
            "CARILLON_REDIS_URL",
        ),
        ("dispatcher.ratio", "expected f64", "variable CARILLON_DISPATCHER_RATIO"),
        ("CARILLON_REDIS_NAMESAPCE", "unknown setting; [redis] has namespace, url", "the environment"),
        ("log.format", "found `yaml`, expected `human` or `json`", "variable CARILLON_LOG_FORMAT"),
        ("log.level", "is no level", "variable RUST_LOG"),
    ] {
        let found = problems.0.iter().find(|problem| problem.setting == setting);
        let found = found.unwrap_or_else(|| panic!("nothing about {setting} in\n{text}"));
        assert!(found.rule.contains(rule) && found.source.contains(source), "{found}\nwanted: {rule} / {source}");
    }
    assert_eq!(problems.0.len(), 10, "{text}");
    assert!(!text.contains("geheim"), "{text}");
}

#[test]
fn what_belongs_to_others_is_left_alone() {
    let environment = [
        POSTGRES,
        REDIS,
        ("CARILLON_GATEWAY_LISTEN", "0.0.0.0:3051"),
        ("CARILLON_TEST_JOURNAL", "/tmp/j"),
        ("CARILLON_CONFIG", "x"),
        ("CARILLON_PROTOCOL_LEASE", "20s"),
        ("CARILLON_DISPATCHER_SERVICE_HOST", "10.0.0.1"),
        ("CARILLON_DISPATCHER_PORT", "tcp://10.0.0.1:80"),
        ("CARILLON_DISPATCHER_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("CARILLON_REDIS_SERVICE_PORT", "6379"),
    ];
    load(None, &environment).unwrap();
    let problems = load(None, &[POSTGRES, REDIS, ("CARILLON_DISPATCHER_LAED", "1")]).unwrap_err();
    assert_eq!(problems.0[0].setting, "CARILLON_DISPATCHER_LAED");
}

/// Whoever has set them for the command line starts `carillon dev` in the same shell.
#[test]
fn the_variables_of_the_command_line_are_left_alone_and_what_is_nearly_one_is_refused() {
    let environment = [
        POSTGRES,
        REDIS,
        (config::ADDRESS_VARIABLE, "http://127.0.0.1:3051"),
        (config::PLATFORM_VARIABLE, "acme"),
        (config::CA_VARIABLE, "/etc/ca.pem"),
    ];
    load(None, &environment).unwrap();
    for name in ["CARILLON_ADRESS", "CARILLON_ADDRESSES", "CARILLON_CA_FILE", "CARILLON_PLATFORM_ID"] {
        let problems = load(None, &[POSTGRES, REDIS, (name, "x")]).unwrap_err();
        assert_eq!(problems.0[0].setting, name);
    }
}

/// What Kubernetes sets in every pod of a namespace with a service that is called carillon.
#[test]
fn a_kubernetes_service_with_our_name_is_left_alone() {
    let environment = [
        POSTGRES,
        REDIS,
        ("CARILLON_SERVICE_HOST", "10.0.0.1"),
        ("CARILLON_SERVICE_PORT", "3051"),
        ("CARILLON_SERVICE_PORT_API", "3051"),
        ("CARILLON_PORT", "tcp://10.0.0.1:3051"),
        ("CARILLON_PORT_3051_TCP", "tcp://10.0.0.1:3051"),
        ("CARILLON_PORT_3051_TCP_PROTO", "tcp"),
        ("CARILLON_PORT_3051_TCP_PORT", "3051"),
        ("CARILLON_PORT_3051_TCP_ADDR", "10.0.0.1"),
    ];
    load(None, &environment).unwrap();
    let problems = load(None, &[POSTGRES, REDIS, ("CARILLON_PORT", "3051")]).unwrap_err();
    assert_eq!(problems.0[0].setting, "CARILLON_PORT", "that is somebody's mistake");
}

#[test]
fn a_file_that_is_missing_or_no_toml_is_an_error() {
    let environment = [POSTGRES, REDIS].map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let missing = config::load::<Config>(&SERVICE, Some(std::path::Path::new("/nonexistent.toml")), environment);
    assert!(missing.unwrap_err().to_string().contains("--config: cannot be read"));
    let problems = load(Some(&file("[dispatcher\n")), &[POSTGRES, REDIS]).unwrap_err().to_string();
    assert!(problems.contains("--config: is no TOML"), "{problems}");
}

#[test]
fn the_effective_settings_are_shown_with_their_place_and_without_secrets() {
    let environment =
        [("CARILLON_POSTGRES_URL", "postgres://u:geheim@h/db"), REDIS, ("CARILLON_DISPATCHER_QUEUES", "a,b")];
    let shown = load(None, &environment).unwrap().effective;
    assert!(!shown.contains("geheim"), "{shown}");
    assert!(shown.contains("url = \"postgres://u:***@h/db\"  # from variable CARILLON_POSTGRES_URL"), "{shown}");
    assert!(shown.contains("[dispatcher]\nlead = \"200ms\"  # the default\n"), "{shown}");
    assert!(shown.contains("queues = [\"a\", \"b\"]"), "{shown}");
}
