#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    ami_share_core::step::run(create_usage_report::create_usage_report).await
}
