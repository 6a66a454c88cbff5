// Command routers serves the same small API with chi, gin, echo, fiber or huma, guarded by the same middleware. Each router's file
// shows all that it takes.
//
//	go run . -router gin
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/store/memstore"
)

// routers make the API: GET /orders needs orders:read and answers whose they are, GET /healthz needs nothing.
var routers = map[string]func(*httpauth.Auth) server{"chi": withChi, "gin": withGin, "echo": withEcho, "fiber": withFiber, "huma": withHuma}

// server is an *http.Server, or what fiber has for one.
type server interface {
	Serve(net.Listener) error // http.ErrServerClosed after Close
	Close() error
}

// overHTTP serves a router that is an http.Handler.
func overHTTP(h http.Handler) server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
}

func main() {
	name := flag.String("router", "chi", "chi, gin, echo, fiber or huma")
	addr := flag.String("addr", "127.0.0.1:8080", "where to listen")
	flag.Parse()
	gin.SetMode(gin.ReleaseMode)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := run(ctx, *name, *addr, func(url, token string) {
		fmt.Printf("curl -H 'Authorization: Bearer %s' %s/orders\n", token, url)
	})
	if err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends. ready is told where, and a token that is good there.
func run(ctx context.Context, name, addr string, ready func(url, token string)) error {
	router, ok := routers[name]
	if !ok {
		return fmt.Errorf("no router %q", name)
	}
	svc, err := newService()
	if err != nil {
		return err
	}
	defer svc.Close()
	issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{"orders:read"}})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	ready("http://"+listener.Addr().String(), issued.Access.Reveal())
	server := router(httpauth.New(svc, nil))
	stopped := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stopped()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// newService keeps everything in memory, its keys in the clear: for this example, which ends with its tokens.
func newService() (*apitoken.Service, error) {
	return apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
	})
}
