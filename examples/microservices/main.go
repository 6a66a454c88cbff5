// Microservices starts an issuer and two resource services as processes of their own on loopback, calls both with one
// token, revokes it at the issuer, and prints how long each service took to refuse it. Run it with
//
//	go run ./examples/microservices
//
// The services have no store and no keys: only remote.NewValidator and a client's credential.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/httpauth"
	"github.com/apitoken-go/apitoken/remote"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

const audience = "https://api.example.com"

func main() {
	log.SetFlags(0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) == 3 && os.Args[1] == "issuer":
		err = issuer(ctx, os.Args[2])
	case len(os.Args) == 4 && os.Args[1] == "service":
		err = service(ctx, os.Args[2], os.Args[3])
	case len(os.Args) == 1:
		err = conduct(ctx, os.Stdout)
	default:
		err = errors.New("usage: microservices")
	}
	if err != nil {
		log.Fatal(err)
	}
}

// issuer is the process that has the store and the keys. It prints where it listens and the credential that the
// services use; a real one would hand that out by its deployment.
func issuer(ctx context.Context, dir string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	self := "http://" + l.Addr().String()
	st, err := boltstore.Open(filepath.Join(dir, "tokens.db"), nil)
	if err != nil {
		return err
	}
	defer st.Close()
	seal, err := apitoken.KeyFile(filepath.Join(dir, "tokens.key"))
	if err != nil {
		return err
	}
	svc, err := apitoken.New(apitoken.Config{Issuer: self, Audience: audience, Store: st, Seal: seal})
	if err != nil {
		return err
	}
	defer svc.Close()
	_, secret, err := svc.Clients.Create(ctx, apitoken.Client{ID: "services", Scopes: apitoken.Scopes{remote.FollowScope}})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/", remote.Handler(svc))
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		issued, err := svc.Issue(r.Context(), apitoken.Request{Subject: r.FormValue("user"), Scopes: apitoken.Scopes{"orders:read", "mail:read"}})
		if err != nil {
			httpauth.New(svc, nil).Error(w, r, err)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		if err := json.NewEncoder(w).Encode(issued.Response()); err != nil {
			log.Print(err)
		}
	})
	mux.HandleFunc("POST /dismiss", func(w http.ResponseWriter, r *http.Request) {
		if err := svc.Revoke(r.Context(), apitoken.BySubject(r.FormValue("user")), "left the company"); err != nil {
			httpauth.New(svc, nil).Error(w, r, err)
		}
	})
	fmt.Println(self, secret.Reveal())
	return serve(ctx, l, mux)
}

// service is a process that only validates.
func service(ctx context.Context, name, from string) error {
	v, err := remote.NewValidator(remote.Config{
		Issuer: from, Audience: audience,
		Client: apitoken.ClientAuth{ID: "services", Secret: apitoken.NewSecret(os.Getenv("CLIENT_SECRET"))},
	})
	if err != nil {
		return err
	}
	defer v.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	auth := httpauth.New(v, nil)
	mux := http.NewServeMux()
	mux.Handle("GET /"+name, auth.Require(apitoken.Scope(name+":read"))(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s of %s", name, apitoken.FromContext(r.Context()).Subject())
	})))
	if err := v.Ready(ctx); err != nil {
		return err
	}
	fmt.Println("http://" + l.Addr().String() + "/" + name)
	return serve(ctx, l, mux)
}

func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(sctx) != nil {
			srv.Close() // long polls
		}
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// child starts this program in another role and returns the first line that it prints.
func child(ctx context.Context, env []string, args ...string) (line string, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	}
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return "", nil, fmt.Errorf("%s did not start: %w", args[0], err)
	}
	return strings.TrimSpace(line), stop, nil
}

// conduct starts all three and shows a call, a revocation and its effect.
func conduct(ctx context.Context, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "apitoken-microservices-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	line, stop, err := child(ctx, nil, "issuer", dir)
	if err != nil {
		return err
	}
	defer stop()
	issuer, secret, _ := strings.Cut(line, " ")
	fmt.Fprintln(out, "issuer     ", issuer)
	var services []string
	for _, name := range []string{"orders", "mail"} {
		url, stop, err := child(ctx, []string{"CLIENT_SECRET=" + secret}, "service", name, issuer)
		if err != nil {
			return err
		}
		defer stop()
		fmt.Fprintf(out, "%-11s %s\n", name, url)
		services = append(services, url)
	}

	body, err := post(ctx, issuer+"/login", "user=alice")
	if err != nil {
		return err
	}
	var token apitoken.TokenResponse
	if err := json.Unmarshal(body, &token); err != nil {
		return err
	}
	fmt.Fprintln(out, "\nalice logs in and calls both services:")
	for _, url := range services {
		status, answer, err := get(ctx, url, token.AccessToken)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "  %-40s %d %s\n", url, status, answer)
		if status != http.StatusOK {
			return errors.New("a good token was refused")
		}
	}

	if _, err := post(ctx, issuer+"/dismiss", "user=alice"); err != nil {
		return err
	}
	acknowledged := time.Now()
	fmt.Fprintln(out, "\nthe issuer revokes all that alice holds:")
	took := make([]time.Duration, len(services))
	for left := len(services); left > 0; {
		for i, url := range services {
			if took[i] != 0 {
				continue
			}
			status, _, err := get(ctx, url, token.AccessToken)
			if err != nil {
				return err
			}
			if status == http.StatusUnauthorized {
				took[i] = time.Since(acknowledged)
				left--
				fmt.Fprintf(out, "  %-40s %d, %.1f ms after the acknowledgement\n", url, status, float64(took[i].Microseconds())/1000)
			}
		}
	}
	return nil
}

func post(ctx context.Context, url, form string) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(form))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, res.Status)
	}
	return io.ReadAll(res.Body)
}

func get(ctx context.Context, url, token string) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}
