use start_share::{Settings, start_share};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    let settings = Settings::from_env()?;
    ami_share_core::step::run(async |hub: &_, event| start_share(hub, &settings, event).await).await
}
