# Net::HTTP, which keeps the last session of its object.
# Arguments: mechanism, file of the CA, server name, port, connections.

require "net/https"

mechanism, ca, name, port, connections = ARGV
puts "version #{RUBY_VERSION}"

if mechanism == "session-id"
  # Net::HTTP has no setting for this.
  OpenSSL::SSL::SSLContext::DEFAULT_PARAMS[:options] |= OpenSSL::SSL::OP_NO_TICKET
end
http = Net::HTTP.new(name, port)
http.ipaddr = "127.0.0.1"
http.use_ssl = true
http.ca_file = ca
version = mechanism == "psk" ? OpenSSL::SSL::TLS1_3_VERSION : OpenSSL::SSL::TLS1_2_VERSION
http.min_version = http.max_version = version

connections.to_i.times do
  http.start do
    # Net::HTTP does not say whether it resumed; its socket does.
    outcome = http.instance_variable_get(:@socket).io.session_reused? ? "resumed" : "full"
    puts "#{outcome} #{http.get("/verdict.json", "connection" => "close").body}"
  end
end
