//! AWS clients for the local engine and the sandbox.

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_smithy_http_client::Builder;

use crate::REGION;

/// The secret of every account's root, in the engine and in the sandbox.
pub const SECRET: &str = "test";

/// Makes calls to `endpoint` as the root of `account`: both the engine and the sandbox take an
/// access key id of 12 digits for that account's root.
pub fn root_of(account: &str, endpoint: &str) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .endpoint_url(endpoint)
        .http_client(Builder::new().build_http())
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new(account, SECRET, None, None, "root")))
        .build()
}
