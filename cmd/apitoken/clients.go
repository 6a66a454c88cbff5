package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/admin"
)

func (a *app) clientsCommand() *cobra.Command {
	limit := 100
	c := &cobra.Command{
		Use: "clients", Short: "List OAuth clients, register them, rotate their secrets", Args: exactly(0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			return lists(c, a, limit, []string{"CLIENT", "NAME", "STATE", "PROOF", "GRANT TYPES", "SCOPES"}, func(x admin.ClientInfo) []string {
				return []string{x.ID, x.Name, clientState(x), proof(x), grantTypes(x.GrantTypes), x.Scopes.String()}
			}, func(ctx context.Context, s *service, after string, n int) (admin.Page[admin.ClientInfo], error) {
				return s.Clients(ctx, admin.PageQuery{After: after, Limit: n})
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", limit, limitHelp)
	one := exactly(1, "the ID of a client")
	able := func(use, about string, disabled bool) *cobra.Command {
		return shows(a, use+" CLIENT", about, one, a.client, func(ctx context.Context, s *service, args []string) (admin.ClientInfo, error) {
			return s.DisableClient(ctx, args[0], disabled)
		})
	}
	c.AddCommand(a.clientCreate(), a.clientRotate(),
		shows(a, "show CLIENT", "Show a client", one, a.client, func(ctx context.Context, s *service, args []string) (admin.ClientInfo, error) {
			return s.Client.Client(ctx, args[0])
		}),
		able("disable", "Disable a client, which ends all it holds", true), able("enable", "Let a disabled client go on", false))
	return c
}

func clientState(x admin.ClientInfo) string {
	if x.Disabled {
		return "disabled"
	}
	return "active"
}

func proof(x admin.ClientInfo) string {
	switch {
	case x.Public:
		return "none (public)"
	case x.AuthMethod == "":
		return "secret"
	}
	return x.AuthMethod
}

// grantTypes leaves out the first part of long names.
func grantTypes(list []string) string {
	short := make([]string, len(list))
	for i, g := range list {
		short[i] = strings.TrimPrefix(g, "urn:ietf:params:oauth:grant-type:")
	}
	return strings.Join(short, " ")
}

func (a *app) client(x admin.ClientInfo) {
	var secrets []string
	for _, s := range x.Secrets {
		secrets = append(secrets, "made "+at(s.Created)+", ends "+or(at(s.Expires), "never"))
	}
	a.list("client", x.ID, "name", x.Name, "state", clientState(x), "proof", proof(x), "grant types", grantTypes(x.GrantTypes), "scopes", x.Scopes.String(),
		"audiences", strings.Join(x.Audiences, " "), "redirects to", strings.Join(x.RedirectURIs, " "), "TLS name", x.TLSName, "created", at(x.Created), "expires", at(x.Expires),
		"secrets", strings.Join(secrets, "; "))
}

func (a *app) clientCreate() *cobra.Command {
	var x admin.ClientSpec
	var scopes []string
	var jwks string
	c := &cobra.Command{
		Use: "create", Short: "Register a client and print its secret", Args: exactly(0, ""),
		Long: "create registers a client. Its secret alone, if it has one, is printed on the output, the rest on the error output.",
		RunE: func(c *cobra.Command, _ []string) error {
			if x.Name == "" || len(x.GrantTypes) == 0 {
				return usage("Such as clients create --name Reports --grant-types client_credentials --scopes orders:read.", "--name and --grant-types are required")
			}
			for _, s := range scopes {
				x.Scopes = append(x.Scopes, apitoken.Scope(s))
			}
			for i, g := range x.GrantTypes {
				switch g {
				case "token-exchange", "jwt-bearer", "device_code":
					x.GrantTypes[i] = "urn:ietf:params:oauth:grant-type:" + g
				}
			}
			if jwks != "" {
				b, err := a.read(jwks, 64<<10)
				if err != nil {
					return err
				}
				x.JWKS = b
			}
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				if err := s.mayMake(); err != nil {
					return err
				}
				m, err := s.CreateClient(ctx, x)
				switch {
				case err != nil:
					return err
				case m.Secret == "" && a.json:
					return a.print(m)
				case m.Secret == "":
					a.client(m.Client)
					return nil
				}
				return a.made(m, m.Secret, "Client "+m.Client.ID+" is registered")
			})
		},
	}
	f := c.Flags()
	f.StringVar(&x.ID, "id", "", "its `client_id`; default: one is made")
	f.StringVar(&x.Name, "name", "", "shown to people")
	f.BoolVar(&x.Public, "public", false, "it has no credential")
	f.StringSliceVar(&x.GrantTypes, "grant-types", nil, "such as client_credentials, authorization_code, refresh_token, device_code, token-exchange")
	f.StringSliceVar(&scopes, "scopes", nil, "the most it may hold, parted by commas")
	f.StringSliceVar(&x.Audiences, "audiences", nil, "the most it may ask for, parted by commas")
	f.StringSliceVar(&x.RedirectURIs, "redirect-uris", nil, "parted by commas")
	f.StringVar(&x.AuthMethod, "auth-method", "", "such as private_key_jwt; default: a secret")
	f.StringVar(&jwks, "jwks-file", "", "`file` with its public JWK set")
	f.StringVar(&x.TLSName, "tls-name", "", "what its certificate says, for tls_client_auth, such as dns:app.example.com")
	return c
}

func (a *app) clientRotate() *cobra.Command {
	var overlap string
	c := &cobra.Command{Use: "rotate-secret CLIENT", Short: "Make a client another secret and print it", Args: exactly(1, "the ID of a client"),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := length(overlap)
			if err != nil {
				return err
			}
			return a.with(c.Context(), func(ctx context.Context, s *service) error {
				if err := s.mayMake(); err != nil {
					return err
				}
				m, err := s.RotateClient(ctx, args[0], d)
				if err != nil {
					return err
				}
				return a.made(m, m.Secret, "Client "+args[0]+" has another secret")
			})
		}}
	overlapFlag(c, &overlap)
	return c
}

func (a *app) rolesCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "roles", Short: "List roles, define one", Args: exactly(0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			return lists(c, a, 0, []string{"ROLE", "SCOPES"}, func(r admin.Role) []string { return []string{r.Name, r.Scopes.String()} },
				func(ctx context.Context, s *service, _ string, _ int) (admin.Page[admin.Role], error) {
					return s.Roles(ctx)
				})
		},
	}
	set := shows(a, "set ROLE SCOPE…", "Define what a role expands to", func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage("Such as roles set support orders:read users:read.", "roles set takes a role and its scopes")
		}
		return nil
	}, func(r admin.Role) { a.list("role", r.Name, "scopes", r.Scopes.String()) }, func(ctx context.Context, s *service, args []string) (admin.Role, error) {
		r := admin.Role{Name: args[0], Scopes: apitoken.Scopes{}}
		for _, s := range args[1:] {
			r.Scopes = append(r.Scopes, apitoken.Scope(s))
		}
		return s.SetRole(ctx, r)
	})
	set.Long = `set defines what a role expands to. When it loses scopes, tokens that carry it are refused until they are refreshed.
What it gains is for new logins.`
	c.AddCommand(set)
	return c
}
