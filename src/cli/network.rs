//! What repositories on a network need from outside: the usual variables and files, bandwidth, and who hears of waits.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use snapshot::backend::Backend;
use snapshot::backend::remote::{
    Addressing, Credentials, Limits, Options, Place, Remote, S3Settings, Service, SftpSettings, Surroundings,
};
use snapshot::error::{Error, Result};

use super::env::Env;

/// Opens a place on a network. No connection is made yet.
///
/// # Errors
/// For variables and files that make no sense.
pub fn backend(place: &Place, env: &Env, limits: Limits, surroundings: Surroundings) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(match place {
        Place::Sftp(place) => Remote::sftp(place, sftp_settings(env)?, limits, surroundings)?,
        Place::S3(place) => Remote::s3(place, &s3_settings(env)?, limits, surroundings)?,
        Place::Other(place) => Remote::other(place, options(env, place.service)?, limits, surroundings)?,
    }))
}

/// Which variables other services are set up by, and what OpenDAL calls that.
fn options(env: &Env, service: Service) -> Result<Options> {
    let known: &[(&str, &str)] = match service {
        Service::Azblob => &[
            ("AZURE_STORAGE_ACCOUNT_NAME", "account_name"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "account_key"),
            ("AZURE_STORAGE_SAS_TOKEN", "sas_token"),
            ("AZURE_STORAGE_ENDPOINT", "endpoint"),
        ],
        Service::Gcs => &[("GOOGLE_APPLICATION_CREDENTIALS", "credential_path"), ("STORAGE_ENDPOINT", "endpoint")],
        Service::B2 => &[
            ("B2_APPLICATION_KEY_ID", "application_key_id"),
            ("B2_APPLICATION_KEY", "application_key"),
            ("B2_BUCKET_ID", "bucket_id"),
        ],
        Service::Webdav => {
            &[("WEBDAV_USERNAME", "username"), ("WEBDAV_PASSWORD", "password"), ("WEBDAV_TOKEN", "token")]
        }
    };
    let set =
        |(variable, key): &(&str, &str)| Some(text(env, variable).transpose()?.map(|value| ((*key).to_owned(), value)));
    known.iter().filter_map(set).collect()
}

fn sftp_settings(env: &Env) -> Result<SftpSettings> {
    Ok(SftpSettings { command: text(env, "SNAPSHOT_SSH_COMMAND")? })
}

/// A variable that is text.
fn text(env: &Env, name: &str) -> Result<Option<String>> {
    let not_text = |_: OsString| Error::Usage(format!("{name} is not UTF-8"));
    env.get(name).map(|value| value.into_string().map_err(not_text)).transpose()
}

/// The first of these variables that is set.
fn first(env: &Env, names: &[&str]) -> Result<Option<String>> {
    names.iter().find_map(|name| text(env, name).transpose()).transpose()
}

fn s3_settings(env: &Env) -> Result<S3Settings> {
    let profile = first(env, &["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])?;
    let of_profile = profile_settings(env, profile.as_deref().unwrap_or("default"))?;
    let from_profile = |key: &str| of_profile.get(key).cloned();
    let key = (text(env, "AWS_ACCESS_KEY_ID")?, text(env, "AWS_SECRET_ACCESS_KEY")?);
    let credentials = match key {
        (Some(id), Some(secret)) => {
            Credentials::Keys { id, secret, token: first(env, &["AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"])? }
        }
        (None, None) => Credentials::Found { profile },
        (Some(_), None) => return Err(half("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")),
        (None, Some(_)) => return Err(half("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")),
    };
    let style = text(env, "SNAPSHOT_S3_ADDRESSING")?.or_else(|| from_profile("addressing_style"));
    let addressing = match style.as_deref() {
        None | Some("auto") => None,
        Some("path") => Some(Addressing::Path),
        Some("virtual") => Some(Addressing::Host),
        Some(other) => {
            return Err(Error::Usage(format!("SNAPSHOT_S3_ADDRESSING is path, virtual or auto, not \"{other}\"")));
        }
    };
    let authorities = env
        .get("AWS_CA_BUNDLE")
        .map(PathBuf::from)
        .map(|path| fs::read(&path).map_err(|e| Error::file("read", &path, e)));
    Ok(S3Settings {
        endpoint: first(env, &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])?.or_else(|| from_profile("endpoint_url")),
        region: first(env, &["AWS_REGION", "AWS_DEFAULT_REGION"])?.or_else(|| from_profile("region")),
        credentials,
        addressing,
        authorities: authorities.transpose()?,
    })
}

fn half(set: &str, missing: &str) -> Error {
    Error::refused(
        format!("{set} is set, but {missing} is not"),
        format!("set {missing} too, or neither and use AWS_PROFILE"),
    )
}

/// What the shared configuration says of a profile. No file is as good as an empty one.
fn profile_settings(env: &Env, profile: &str) -> Result<HashMap<String, String>> {
    let in_home = || env.home().map(|home| home.join(".aws/config"));
    let Some(path) = env.get("AWS_CONFIG_FILE").map(PathBuf::from).or_else(in_home) else { return Ok(HashMap::new()) };
    match fs::read(&path) {
        Ok(bytes) => Ok(parse_profile(&String::from_utf8_lossy(&bytes), profile)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(HashMap::new()),
        Err(e) => Err(Error::file("read", &path, e)),
    }
}

/// The keys of a section, those of its nested groups too: none of them has the same name.
fn parse_profile(text: &str, profile: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut is_ours = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let name = section.trim();
            is_ours =
                name.strip_prefix("profile ").map_or(name == "default" && profile == name, |n| n.trim() == profile);
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_ours) {
            found.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    found.retain(|_, value| !value.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_before_the_profile() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        let text = "[default]\nregion = eu-west-1\n# region = x\n[profile far]\nregion=ap-south-1\nendpoint_url = https://e\n\
                    s3 =\n  addressing_style = virtual\n";
        fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let settings = s3_settings(&Env::fixed(&[("AWS_CONFIG_FILE", config)])).unwrap();
        assert_eq!(
            (settings.region.as_deref(), settings.endpoint, settings.addressing),
            (Some("eu-west-1"), None, None)
        );
        assert!(matches!(settings.credentials, Credentials::Found { profile: None }));
        let far = [("AWS_CONFIG_FILE", config), ("AWS_PROFILE", "far")];
        let settings = s3_settings(&Env::fixed(&far)).unwrap();
        assert_eq!((settings.region.as_deref(), settings.endpoint.as_deref()), (Some("ap-south-1"), Some("https://e")));
        assert_eq!(settings.addressing, Some(Addressing::Host));
        let more = [("AWS_REGION", "r"), ("AWS_ENDPOINT_URL", "http://v"), ("SNAPSHOT_S3_ADDRESSING", "path")];
        let settings = s3_settings(&Env::fixed(&[&far[..], &more].concat())).unwrap();
        assert_eq!((settings.region.as_deref(), settings.endpoint.as_deref()), (Some("r"), Some("http://v")));
        assert_eq!(settings.addressing, Some(Addressing::Path));
    }

    #[test]
    fn half_a_key_is_none() {
        let keys = [("AWS_ACCESS_KEY_ID", "i"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_SESSION_TOKEN", "t")];
        let settings = s3_settings(&Env::fixed(&keys)).unwrap();
        assert!(matches!(settings.credentials, Credentials::Keys { token: Some(token), .. } if token == "t"));
        assert!(s3_settings(&Env::fixed(&keys[..1])).is_err());
        assert!(s3_settings(&Env::fixed(&keys[1..])).is_err());
    }
}
