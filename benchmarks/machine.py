from reporting import describe
