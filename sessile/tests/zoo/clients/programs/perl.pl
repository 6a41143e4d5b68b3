# IO::Socket::SSL with a session cache.
# Arguments: mechanism, file of the CA, server name, port, connections.

use strict;
use warnings;
use IO::Socket::SSL;

my ($mechanism, $ca, $name, $port, $connections) = @ARGV;
print "version $IO::Socket::SSL::VERSION\n";

my $context = IO::Socket::SSL::SSL_Context->new(
    SSL_ca_file => $ca,
    SSL_verify_mode => SSL_VERIFY_PEER,
    SSL_version => $mechanism eq "psk" ? "TLSv1_3" : "TLSv1_2",
    SSL_session_cache_size => 10,
    SSL_create_ctx_callback => sub {
        Net::SSLeay::CTX_set_options(shift, Net::SSLeay::OP_NO_TICKET()) if $mechanism eq "session-id";
    },
) or die $SSL_ERROR;

for (1 .. $connections) {
    my $tls = IO::Socket::SSL->new(
        PeerAddr => "127.0.0.1",
        PeerPort => $port,
        SSL_reuse_ctx => $context,
        SSL_hostname => $name,
        SSL_verifycn_name => $name,
        SSL_verifycn_scheme => "http",
    ) or die $SSL_ERROR;
    print $tls "GET /verdict.json HTTP/1.1\r\nhost: $name\r\nconnection: close\r\n\r\n";
    my $response = join "", <$tls>;
    my ($body) = $response =~ /\r\n\r\n(.*)/s;
    print $tls->get_session_reused ? "resumed" : "full", " $body\n";
    $tls->close;
}
