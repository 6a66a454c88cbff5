// Command queue shows a worker behind NATS JetStream that checks the token in each message's header. It starts a NATS server of
// its own, sends two jobs, of which one lacks the scope, and says what became of them.
//
//	go run .
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/store/memstore"
)

const (
	stream  = "ORDERS"
	subject = "orders.place"
)

func main() {
	dir, err := os.MkdirTemp("", "queue-")
	if err == nil {
		err = run(context.Background(), dir, os.Stdout)
		_ = os.RemoveAll(dir)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, dir string, out io.Writer) error {
	js, stop, err := startNATS(ctx, dir)
	if err != nil {
		return err
	}
	defer stop()
	// In memory, its keys in the clear: for this example, which ends with its tokens.
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: memstore.New(), InsecureKeysInStore: true,
	})
	if err != nil {
		return err
	}
	defer svc.Close()

	ended := make(chan string, 2)
	w := &worker{
		auth: httpauth.New(svc, nil), needs: apitoken.AllOf("orders:write"),
		do: func(ctx context.Context, job []byte) error {
			fmt.Fprintf(out, "%s orders %s\n", apitoken.FromContext(ctx).Subject(), job)
			return nil
		},
		done: func(m jetstream.Msg, _ apitoken.Token, err error) { ended <- fmt.Sprintf("%s: %v", m.Data(), err) },
	}
	consuming, err := consume(ctx, js, w)
	if err != nil {
		return err
	}
	defer consuming.Stop()

	for _, x := range []struct {
		what  string
		scope apitoken.Scope
	}{{"tea", "orders:write"}, {"coffee", "orders:read"}} {
		issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice", Scopes: apitoken.Scopes{x.scope}})
		if err != nil {
			return err
		}
		if _, err := js.PublishMsg(ctx, job(subject, issued.Access.Reveal(), []byte(x.what))); err != nil {
			return err
		}
		fmt.Fprintln(out, <-ended)
	}
	return nil
}

// consume gives w each message of the stream, one at a time.
func consume(ctx context.Context, js jetstream.JetStream, w *worker) (jetstream.ConsumeContext, error) {
	consumer, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{Durable: "worker", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		return nil, err
	}
	return consumer.Consume(func(m jetstream.Msg) { w.handle(ctx, m) })
}

// startNATS starts a server that keeps its stream in dir.
func startNATS(ctx context.Context, dir string) (jetstream.JetStream, func(), error) {
	server, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		return nil, nil, err
	}
	server.Start()
	stop := func() {
		server.Shutdown()
		server.WaitForShutdown()
	}
	if !server.ReadyForConnections(30 * time.Second) {
		stop()
		return nil, nil, errors.New("the NATS server does not start")
	}
	conn, err := nats.Connect(server.ClientURL())
	if err != nil {
		stop()
		return nil, nil, err
	}
	js, err := jetstream.New(conn)
	if err == nil {
		_, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: stream, Subjects: []string{subject}, Retention: jetstream.WorkQueuePolicy})
	}
	if err != nil {
		conn.Close()
		stop()
		return nil, nil, err
	}
	return js, func() {
		conn.Close()
		stop()
	}, nil
}
