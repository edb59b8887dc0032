//! The floor: what a relay costs that does nothing but TLS on one side and TCP on the other.
//!
//! A process of its own, started as `bench floor CERTIFICATE KEY SINK`: prints the port that it listens
//! at, terminates TLS, connects to the sink and copies both ways. One thread, large buffers: cheaper than
//! anything that also knows whose stream it is.

use std::{io::Write, net::SocketAddr, process::ExitCode, sync::Arc};
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

/// Of both directions; what FACTS recommends for bulk.
const BUFFER_BYTES: usize = 64 * 1024;

/// The process.
pub fn main(arguments: &[String]) -> ExitCode {
    let [certificate, key, sink] = arguments else {
        eprintln!("floor CERTIFICATE KEY SINK");
        return ExitCode::from(2);
    };
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let sink: SocketAddr = sink.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("port {}", listener.local_addr().unwrap().port());
        std::io::stdout().flush().unwrap();
        let mut relays = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            relays.spawn(async move {
                tcp.set_nodelay(true).unwrap();
                let mut tls = acceptor.accept(tcp).await.unwrap();
                let mut tcp = TcpStream::connect(sink).await.unwrap();
                tcp.set_nodelay(true).unwrap();
                // Ends with the load.
                let _ = copy_bidirectional_with_sizes(&mut tls, &mut tcp, BUFFER_BYTES, BUFFER_BYTES).await;
            });
        }
    })
}
