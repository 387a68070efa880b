//! What Lambda gives a function, for the SDKs: Region, credentials and endpoints. And whom the function trusts.
//!
//! `aws_config::load_defaults` looks in files, in the metadata services and in the machine's store of certificates besides.
//! None of that is where a function runs, and looking is most of what a start took.

use std::env;

use aws_config::{BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableCredentialsProvider};
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

/// Those of Amazon Trust Services, all that the endpoints of AWS need outside of China ("Trust store and pinning
/// recommendations", Amazon Trust Services repository). Valid until 2037 and later.
const ROOTS: &[u8] = include_bytes!("roots.pem");

/// # Errors
/// When the roots cannot be read.
pub fn config() -> Result<SdkConfig, String> {
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .credentials_provider(SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()))
        .http_client(https()?)
        .service_config(Endpoints)
        .use_fips(env::var("AWS_USE_FIPS_ENDPOINT").is_ok_and(|value| value == "true"));
    config.set_region(env::var("AWS_REGION").ok().map(Region::new));
    config.set_endpoint_url(env::var("AWS_ENDPOINT_URL").ok());
    Ok(config.build())
}

fn https() -> Result<SharedHttpClient, String> {
    let trusted = TrustStore::empty().with_pem_certificate(ROOTS);
    let context = TlsContext::builder().with_trust_store(trusted).build().map_err(|error| error.to_string())?;
    Ok(Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(context).build_https())
}

/// `AWS_ENDPOINT_URL_<SERVICE>`: for engines that stand in for one service.
#[derive(Debug)]
struct Endpoints;

impl LoadServiceConfig for Endpoints {
    fn load_config(&self, key: ServiceConfigKey<'_>) -> Option<String> {
        let service = key.service_id().to_uppercase().replace(' ', "_");
        env::var(format!("{}_{service}", key.env())).ok()
    }
}

#[cfg(test)]
mod tests {
    use aws_smithy_runtime_api::client::{http::HttpClient, runtime_components::RuntimeComponentsBuilder};
    use aws_smithy_types::config_bag::ConfigBag;

    use super::*;

    #[test]
    fn the_five_roots_are_trusted() {
        let names: Vec<&str> =
            str::from_utf8(ROOTS).unwrap().lines().filter_map(|line| line.strip_prefix("# ")).collect();
        assert_eq!(names.len(), 5, "{names:?}");
        // Reads every certificate, and panics over one that is none.
        https()
            .unwrap()
            .validate_base_client_config(&RuntimeComponentsBuilder::new("test"), &ConfigBag::base())
            .unwrap();
    }
}
