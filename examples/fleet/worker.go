package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/etcdstore"
	"github.com/apitoken-go/apitoken/store/pgstore"
	"github.com/apitoken-go/apitoken/store/redisstore"
)

const (
	maxStaleness   = time.Second
	workerVariable = "APITOKEN_FLEET_WORKER"
)

// What the parent asks its processes, as JSON over HTTP.
type (
	request struct{ Subject, Grant string }
	issued  struct{ Grant, Access, Refresh string }
	status  struct {
		Age               time.Duration
		Accepted, Refused int64
	}
)

// process is a child that serves until it is killed, or its parent ends.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer // its end tells the child that we are gone
	url   string
}

func spawn(engine, server string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, engine, server)
	cmd.Env = append(os.Environ(), workerVariable+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, stdin: in}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("a process did not start: %w", err)
	}
	p.url = strings.TrimSpace(line)
	return p, nil
}

// kill is SIGKILL: nothing is handed over.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	_ = p.stdin.Close()
}

func connect(ctx context.Context, engine, server string) (apitoken.Store, error) {
	switch engine {
	case "etcd":
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{server}, DialTimeout: 2 * time.Second, DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: time.Second, Logger: zap.NewNop()})
		if err != nil {
			return nil, err
		}
		return etcdstore.New(ctx, c, nil)
	case "postgres":
		c, err := pgxpool.New(ctx, server)
		if err != nil {
			return nil, err
		}
		return pgstore.New(ctx, c, nil)
	case "redis":
		o, err := redis.ParseURL(server)
		if err != nil {
			return nil, err
		}
		return redisstore.New(ctx, redis.NewClient(o), nil)
	}
	return nil, fmt.Errorf("no store %q", engine)
}

// worker is an issuer and validator, until its input ends. It prints its URL first.
func worker(in io.Reader, out io.Writer, args []string) error {
	if len(args) != 2 {
		return errors.New("a worker takes an engine and a server")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	st, err := connect(ctx, args[0], args[1])
	if err != nil {
		return err
	}
	svc, err := apitoken.New(apitoken.Config{
		Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, InsecureKeysInStore: true,
		Validation: apitoken.Validation{MaxStaleness: maxStaleness},
	})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, in)
		os.Exit(0)
	}()
	fmt.Fprintf(out, "http://%s\n", ln.Addr())
	srv := &http.Server{Handler: handler(svc), ReadHeaderTimeout: 5 * time.Second}
	return srv.Serve(ln)
}

func handler(svc *apitoken.Service) http.Handler {
	var yes, no atomic.Int64
	answer := func(w http.ResponseWriter, v any, err error) {
		switch {
		case errors.Is(err, apitoken.ErrUnavailable):
			w.WriteHeader(http.StatusServiceUnavailable)
		case err != nil:
			w.WriteHeader(http.StatusUnauthorized)
		default:
			_ = json.NewEncoder(w).Encode(v)
		}
	}
	within := func(r *http.Request, into any) (context.Context, context.CancelFunc) {
		_ = json.NewDecoder(r.Body).Decode(into)
		return context.WithTimeout(r.Context(), time.Second)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /issue", func(w http.ResponseWriter, r *http.Request) {
		var q request
		ctx, cancel := within(r, &q)
		defer cancel()
		i, err := svc.Issue(ctx, apitoken.Request{Subject: q.Subject, Refresh: true})
		if err != nil {
			answer(w, nil, err)
			return
		}
		answer(w, issued{i.Token.Grant(), i.Access.Reveal(), i.Refresh.Reveal()}, nil)
	})
	mux.HandleFunc("POST /check", func(w http.ResponseWriter, r *http.Request) {
		var q issued
		ctx, cancel := within(r, &q)
		defer cancel()
		_, err := svc.Validate(ctx, apitoken.Bearer(q.Access))
		if err == nil {
			yes.Add(1)
		} else {
			no.Add(1)
		}
		answer(w, struct{}{}, err)
	})
	// Refreshing the same token in each process gives the same answer: the second and third are repetitions.
	mux.HandleFunc("POST /refresh", func(w http.ResponseWriter, r *http.Request) {
		var q issued
		ctx, cancel := within(r, &q)
		defer cancel()
		_, err := svc.Refresh(ctx, apitoken.RefreshRequest{Token: q.Refresh})
		answer(w, struct{}{}, err)
	})
	mux.HandleFunc("POST /revoke", func(w http.ResponseWriter, r *http.Request) {
		var q request
		ctx, cancel := within(r, &q)
		defer cancel()
		target := apitoken.ByGrant(q.Grant)
		if q.Subject != "" {
			target = apitoken.BySubject(q.Subject)
		}
		answer(w, struct{}{}, svc.Revoke(ctx, target, "fleet"))
	})
	mux.HandleFunc("POST /status", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, status{svc.Freshness().Age, yes.Load(), no.Load()}, nil)
	})
	return mux
}
