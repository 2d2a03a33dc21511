// Peer: Boost.Beast, the native reference. One thread, asynchronous, the settings its documentation names for speed
// (no auto-fragmentation, TCP_NODELAY, permessage-deflate only when asked for).
//
//     c++ -O2 -std=c++17 -o server_native server_native.cpp -pthread && ./server_native [--broadcast] [--deflate]
//
// Prints its port, serves until terminated.

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/websocket.hpp>
#include <cstring>
#include <deque>
#include <iostream>
#include <memory>
#include <set>

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace websocket = beast::websocket;
using tcp = asio::ip::tcp;

namespace {

bool broadcast_all = false, deflate = false;

class session;
std::set<session *> everybody;

class session : public std::enable_shared_from_this<session> {
  public:
    explicit session(tcp::socket socket) : stream_(std::move(socket)) { everybody.insert(this); }
    ~session() { everybody.erase(this); }

    void start() {
        stream_.next_layer().set_option(tcp::no_delay(true));
        stream_.set_option(websocket::stream_base::timeout::suggested(beast::role_type::server));
        websocket::permessage_deflate offer;
        offer.server_enable = deflate;
        stream_.set_option(offer);
        stream_.auto_fragment(false);
        stream_.read_message_max(10 * 1024 * 1024);
        stream_.async_accept([self = shared_from_this()](beast::error_code error) {
            if (!error) self->read();
        });
    }

    void queue(const std::shared_ptr<const std::string> &message, bool binary) {
        waiting_.push_back({message, binary});
        if (waiting_.size() == 1) write_next();
    }

  private:
    void read() {
        stream_.async_read(buffer_, [self = shared_from_this()](beast::error_code error, std::size_t) {
            if (error) return;
            if (broadcast_all) self->forward();
            else self->echo();
        });
    }

    void echo() {
        stream_.binary(stream_.got_binary());
        stream_.async_write(buffer_.data(), [self = shared_from_this()](beast::error_code error, std::size_t) {
            if (error) return;
            self->buffer_.consume(self->buffer_.size());
            self->read();
        });
    }

    void forward() {
        auto message = std::make_shared<const std::string>(beast::buffers_to_string(buffer_.data()));
        buffer_.consume(buffer_.size());
        for (session *peer : everybody) peer->queue(message, stream_.got_binary());
        read();
    }

    void write_next() {
        stream_.binary(waiting_.front().binary);
        stream_.async_write(asio::buffer(*waiting_.front().message),
                            [self = shared_from_this()](beast::error_code error, std::size_t) {
                                if (error) return;
                                self->waiting_.pop_front();
                                if (!self->waiting_.empty()) self->write_next();
                            });
    }

    struct outgoing {
        std::shared_ptr<const std::string> message;
        bool binary;
    };

    websocket::stream<tcp::socket> stream_;
    beast::flat_buffer buffer_;
    std::deque<outgoing> waiting_;
};

void accept_next(tcp::acceptor &acceptor) {
    acceptor.async_accept([&acceptor](beast::error_code error, tcp::socket socket) {
        if (!error) std::make_shared<session>(std::move(socket))->start();
        accept_next(acceptor);
    });
}

} // namespace

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        broadcast_all |= !std::strcmp(argv[i], "--broadcast");
        deflate |= !std::strcmp(argv[i], "--deflate");
    }
    asio::io_context context{1};
    tcp::acceptor acceptor{context, {asio::ip::address_v4::loopback(), 0}};
    std::cout << acceptor.local_endpoint().port() << std::endl;
    accept_next(acceptor);
    context.run();
}
