#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lambda_runtime::Error> {
    ami_share_core::step::run_alone(report::report).await
}
