//go:build cgo

package main

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/ThalesGroup/crypto11"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/store/boltstore"
)

// modules are the places where distributions put SoftHSM's library.
var modules = []string{
	"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
	"/usr/local/lib/softhsm/libsofthsm2.so", "/opt/homebrew/lib/softhsm/libsofthsm2.so",
}

var errNoHSM = errors.New("no SoftHSM here: apt-get install softhsm2")

func main() {
	log.SetFlags(0)
	dir, err := os.MkdirTemp("", "apitoken-hsm-")
	if err != nil {
		log.Fatal(err)
	}
	err = run(context.Background(), os.Stdout, dir)
	os.RemoveAll(dir)
	if err != nil {
		log.Fatal(err)
	}
}

// softToken makes a token of SoftHSM in dir and opens it.
func softToken(dir string) (*crypto11.Context, error) {
	module := ""
	for _, path := range modules {
		if _, err := os.Stat(path); err == nil {
			module = path
			break
		}
	}
	util, err := exec.LookPath("softhsm2-util")
	if module == "" || err != nil {
		return nil, errNoHSM
	}
	tokens := filepath.Join(dir, "tokens")
	conf := filepath.Join(dir, "softhsm2.conf")
	if err := os.Mkdir(tokens, 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+tokens+"\nobjectstore.backend = file\nlog.level = ERROR\n"), 0o600); err != nil {
		return nil, err
	}
	if err := os.Setenv("SOFTHSM2_CONF", conf); err != nil { // the library reads it when it is loaded
		return nil, err
	}
	const pin = "1234"
	if out, err := exec.Command(util, "--init-token", "--free", "--label", "apitoken", "--pin", pin, "--so-pin", "5678").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("softhsm2-util: %w: %s", err, out)
	}
	return crypto11.Configure(&crypto11.Config{Path: module, TokenLabel: "apitoken", Pin: pin})
}

func run(ctx context.Context, out io.Writer, dir string) error {
	hsm, err := softToken(dir)
	if err != nil {
		return err
	}
	defer hsm.Close()
	ec, err := hsm.GenerateECDSAKeyPair([]byte("1"), elliptic.P256())
	if err != nil {
		return err
	}
	rsa, err := hsm.GenerateRSAKeyPair([]byte("2"), 2048)
	if err != nil {
		return err
	}
	for alg, signer := range map[string]crypto.Signer{"ES256": ec, "RS256": rsa, "PS256": rsa} {
		if err := sign(ctx, out, filepath.Join(dir, alg), alg, signer); err != nil {
			return fmt.Errorf("%s: %w", alg, err)
		}
	}
	return nil
}

// sign runs a service whose signing key is in the HSM, and restarts it.
func sign(ctx context.Context, out io.Writer, base, alg string, signer crypto.Signer) error {
	seal, err := apitoken.KeyFile(base + ".key")
	if err != nil {
		return err
	}
	var before apitoken.Secret
	for _, when := range []string{"first start", "after a restart"} {
		st, err := boltstore.Open(base+".db", nil)
		if err != nil {
			return err
		}
		svc, err := apitoken.New(apitoken.Config{Issuer: "https://auth.example.com", Audience: "https://api.example.com", Store: st, Seal: seal})
		if err != nil {
			return errors.Join(err, st.Close())
		}
		err = func() error {
			key, err := svc.SigningKeys.Import(ctx, signer, alg) // at each start: the store holds the public half only
			if err != nil {
				return err
			}
			issued, err := svc.Issue(ctx, apitoken.Request{Subject: "alice"})
			if err != nil {
				return err
			}
			if before.IsZero() {
				before = issued.Access
			}
			for _, token := range []apitoken.Secret{issued.Access, before} {
				if _, err := svc.Validate(ctx, apitoken.Bearer(token.Reveal())); err != nil {
					return err
				}
			}
			fmt.Fprintf(out, "%-5s %-16s key %s is %s, in the HSM\n", alg, when, key.ID, key.State)
			return nil
		}()
		if err := errors.Join(err, svc.Close(), st.Close()); err != nil {
			return err
		}
	}
	return nil
}
