from replank_cli.main import main

main()
